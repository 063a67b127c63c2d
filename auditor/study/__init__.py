"""Studies: targets with known membership, trained and audited one after another, told in tables.

    recipe -> train each target (and its shadow) -> audit each, without and with its base -> tables

A recipe is a study where it has the key `study`. Everything that is finished is left alone, so that
the same command goes on after a stop.
"""
