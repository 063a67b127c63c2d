"""The commands that show what there is: `list`, and `cache` with what tidies it."""

from typing import Annotated

from cyclopts import App, Parameter

from auditor.errors import StoreError

listing = App(name="list", help="List attacks, variants or recipes.")
cache = App(name="cache", help="Show or tidy the cache of made versions (COMPLEAK_CACHE).")


@listing.command(name="attacks")
def list_attacks() -> None:
    """The attacks, what they need and where they come from."""
    from auditor.report.catalogue import attacks_table, print_table

    print_table(attacks_table())


@listing.command(name="variants")
def list_variants() -> None:
    """The ways of compressing, their options and whether they run here."""
    from auditor.report.catalogue import print_table, variants_table

    print_table(variants_table())


@listing.command(name="recipes")
def list_recipes() -> None:
    """The recipes that come with the program."""
    from auditor.report.catalogue import print_table, recipes_table

    print_table(recipes_table())


@cache.command(name="list")
def list_cache() -> None:
    """The versions that are kept, so that they need not be made again."""
    from auditor.compress.entries import cache_folder
    from auditor.report.kept import show_kept

    show_kept(cache_folder())


@cache.command(name="prune")
def prune_cache(
    *,
    older_than: float = 30.0,
    everything: Annotated[bool, Parameter(name="--all", negative="")] = False,
) -> None:
    """Remove versions that were not used for long, and what was left half-written.

    Parameters
    ----------
    older_than
        Days without use after which a version goes.
    everything
        Remove all of them. One that another process is making stays.
    """
    from auditor.compress.entries import cache_folder
    from auditor.compress.eviction import evict
    from auditor.report.kept import show_evicted

    root = cache_folder()
    found = None if root is None else evict(root, older_than_days=older_than, everything=everything)
    show_evicted(root, found)
    if found is not None and found.left:
        raise StoreError(
            "the cache must hold nothing but what this program wrote, and let its owner remove it",
            seen=f"left: {'; '.join(found.left)}",
            fix="look what else lies in there; a file that another machine still reads goes later",
        )
