"""Programs that measure: each runs the systems it compares side by side and prints rates and their ratios.

throughput  the service, Ray Tune, Optuna and hand-written numpy on one fixed list of trials
gpu         fused lanes on a GPU against single runs and CPU processes
elastic     gated, relaxed and materialised networks, and lanes of convolutions in every way
coordinates how a network's scale and best learning rate follow its width
"""
