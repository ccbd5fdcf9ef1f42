"""Which split the next items take. Pure decisions: no I/O, no threads, no clocks.

`policy` decides. `estimates` learns costs, by `processor`, `payloads` and `smoothing`; `known` says how sure they are,
`judgement` whether predictions hold. `cost_model` predicts what each split gives, `shares` steers a mix, `hysteresis`
says when to switch, `probing` what to try. `reasons` has the words, `mix` takes turns.
"""
