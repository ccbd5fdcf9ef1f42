"""Which split the next items take. Pure decisions: no I/O, no threads, no clocks.

`policy` decides. `estimates` and `processor` learn what is known, `judgement` whether predictions hold, `cost_model`
predicts what each split gives, `probing` chooses what to try, `reasons` has the words, `mix` takes turns.
"""
