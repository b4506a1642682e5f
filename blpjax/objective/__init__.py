"""What is minimised: from theta to averaged moments and their covariances.

`iv` is linear IV-GMM and knows nothing of demand; `data` and `moments` are what it is fed with. `problem_data` is all
that a problem is made of: whatever comes later reads it. Imports `model`. Start with `moments`.
"""
