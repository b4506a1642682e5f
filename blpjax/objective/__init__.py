"""What is minimised: from theta to averaged moments and their covariances.

`iv` is linear IV-GMM and knows nothing of demand. `structure` goes from theta to mean utilities and costs, `blocks` are
the moments that are made of these, and `moments` is the objective. `problem_data` is all that a problem is made of:
whatever comes later reads it. Imports `model`. Start with `moments`, then `blocks`.
"""
