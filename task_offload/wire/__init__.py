"""Bytes of the protocol: no sockets, no threads, no clocks. `docs/protocol.md` specifies them."""
