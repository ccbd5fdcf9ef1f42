"""Sockets and TLS, and who may connect: the only place with them."""
