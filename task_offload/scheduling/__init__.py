"""Which split the next items take. Pure decisions: no I/O, no threads, no clocks."""
