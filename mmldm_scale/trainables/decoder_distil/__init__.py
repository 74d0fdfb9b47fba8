"""A trainable that distils an autoencoder's signal decoder: see :mod:`.trainable`."""
