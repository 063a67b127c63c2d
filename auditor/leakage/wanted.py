"""What a configuration asks for of that which concerns more than one version."""

from collections.abc import Sequence

from auditor.attacks import ATTACKS
from auditor.compress.noise import is_noise
from auditor.config import AuditConfig
from auditor.leakage.attackers import Holding
from auditor.leakage.blocks import Making
from auditor.leakage.evidence import pairs_of


def wants(config: AuditConfig, attack: str) -> bool:
    """Whether an attack was asked for, by its setting and, where names were given, by name."""
    named = not config.attacks or attack in config.attacks
    return named and ATTACKS[attack].setting in config.settings


def is_wanted(config: AuditConfig) -> bool:
    """Whether anything is to be judged here at all."""
    beyond = [name for name, known in ATTACKS.items() if known.learned or known.setting != "NR"]
    return any(wants(config, name) for name in beyond)


def learns(config: AuditConfig) -> bool:
    """Whether a learned attack was asked for."""
    return any(wants(config, name) for name, known in ATTACKS.items() if known.learned)


def making_of(
    config: AuditConfig, names: Sequence[str], *, n_records: int, same_tokens: bool
) -> Making:
    """What `Evidence.blocks` is made by while the scores are read for the attacks on one version.

    Which of the versions turn out broken is not known yet; of those nothing is used.

    Args:
        config: Settings and attacks.
        names: Every version with finite scores, the original first, and the noises.
        n_records: n.
        same_tokens: Whether the reference has the model's tokenizer.
    """
    versions = tuple(name for name in names if not is_noise(name))
    noises = [(versions[0], name) for name in names if is_noise(name)]
    return Making(
        [*pairs_of(versions, config), *noises],
        original=versions[0],
        n_records=n_records,
        same_tokens=same_tokens,
        learned=learns(config),
    )


def may_ask(config: AuditConfig, holding: Holding) -> bool:
    """Whether the attack that must win is among those asked for."""
    if len(holding.versions) > 2:
        return wants(config, "combined")
    return wants(config, "paired" if len(holding.versions) == 2 else "single")
