"""Which split the next items take: predictions for every split, and the policies that choose. No I/O, no clocks."""
