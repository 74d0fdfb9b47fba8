"""``mmldm rate serve``: makes or resumes a study and serves its pages until it is stopped."""

import argparse
import signal
import socket
from ipaddress import ip_address

from werkzeug.serving import BaseWSGIServer, WSGIRequestHandler, make_server

from mmldm_scale.common import leases
from mmldm_scale.common.errors import UserError
from mmldm_scale.common.leases import Leases
from mmldm_scale.evaluation.rating import study as studies
from mmldm_scale.evaluation.rating.server import RatingApplication
from mmldm_scale.evaluation.rating.store import VoteStore
from mmldm_scale.evaluation.rating.study import Study, Wish

LEASE = "serve"
IDLE = 60  # seconds without a byte after which a connection is closed; browsers open another
MOST_PORT = 65_535


class Handler(WSGIRequestHandler):
    """Answers requests without a log, which would hold the raters' secret links."""

    timeout = IDLE

    def log_request(self, code: int | str = "-", size: int | str = "-") -> None:
        """Log nothing."""

    def version_string(self) -> str:
        """Name no software in responses."""
        return "mmldm"


def run(args: argparse.Namespace) -> int:
    """Serve the study ``args.study`` until Ctrl-C or SIGTERM; return 0.

    Raises:
        UserError: the study, its sets or its settings are wrong, it is served already, or the address is not free.
    """
    if not 0 <= args.port <= MOST_PORT:
        raise UserError(f"--port {args.port}: must be from 0 to {MOST_PORT}")
    wish = Wish(args.mode, args.questions, args.attention, args.seed, studies.parse_sets(args.sets))
    with Leases(args.study) as held:
        if not held.take(LEASE):
            holder, _ = leases.peek(args.study, LEASE) or ({}, False)
            raise UserError(f"{args.study}: is served already, by {leases.describe(holder)}")
        if studies.exists(args.study):
            study = studies.check(studies.load(args.study), wish)
        else:
            study = studies.create(args.study, wish)
        with VoteStore(study.folder) as store:
            token = studies.token(study)
            server = _listen(args.host, args.port, RatingApplication(study, store, token))
            _announce(study, store, args.host, server.port, token)
            signal.signal(signal.SIGTERM, signal.default_int_handler)
            server.serve_forever(poll_interval=0.1)  # returns after KeyboardInterrupt
            raters, votes = store.counts()
            print(f"stopped: {raters} raters, {votes} votes in {study.folder}", flush=True)
    return 0


def _listen(host: str, port: int, application: RatingApplication) -> BaseWSGIServer:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        with socket.create_server((host, port), family=family, backlog=128) as opened:
            port = opened.getsockname()[1]
            return make_server(host, port, application, threaded=True, request_handler=Handler, fd=opened.fileno())
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"--host {host} --port {port}: cannot listen there: {reason}") from None


def _announce(study: Study, store: VoteStore, host: str, port: int, token: str) -> None:
    """Print what is served, and the link for raters on the last line."""
    kind = "pairs of clips" if study.mode == "pairs" else "single clips"
    names = ", ".join(f"{name} ({len(rated.clips)} clips)" for name, rated in study.sets.items())
    print(f"study {study.folder}: {kind} of {names}")
    for name, count in studies.unpaired(study).items():
        print(f"{count} clips of {name} have no partner and are not shown")
    raters, votes = store.counts()
    asked = f"{study.questions} questions and {study.checks} attention checks for each rater"
    print(f"{asked}; so far {raters} raters, {votes} votes")
    if not _is_loopback(host):
        print("everybody with this link can vote; the connection is not encrypted")
    name = socket.gethostname() if host in ("0.0.0.0", "::") else f"[{host}]" if ":" in host else host
    print(f"link for all raters (Ctrl-C stops, the same command resumes): http://{name}:{port}/{token}/", flush=True)


def _is_loopback(host: str) -> bool:
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
