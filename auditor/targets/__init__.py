"""Targets with known membership: what an auditor is tried on before it is believed.

    config -> split (a coin per record) -> training (transformers.Trainer, peft) -> target.json

`train(config)` is the one way in; what it writes, `audit --model TARGET` reads by itself.
"""
