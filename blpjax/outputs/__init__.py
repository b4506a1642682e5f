"""Numbers with labels: the compute methods that all results share.

A query checks arguments, picks a market, evaluates a function of the model and labels what comes back. Imports `model`
and `reporting`. Start with `outputs`, whose methods are decorated in `shared`, ask in `query` and are cut in `labels`.
"""
