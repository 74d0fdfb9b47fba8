"""What a process that a test forked does: it calls a function and ends with its status, whatever happens in it."""

import os
import sys
import traceback
from collections.abc import Callable
from typing import NoReturn

from mmldm_scale.common.errors import UserError


def end_with(call: Callable[[], int]) -> NoReturn:
    """End this process with the status that ``call()`` returns, that of its UserError, or 1 after a traceback."""
    status = 1
    try:
        status = call()
    except UserError as error:
        print(error, file=sys.stderr)
        status = error.status
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
