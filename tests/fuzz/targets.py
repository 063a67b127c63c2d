"""Every parser of this program, in one table: to fuzz another one, add a line.

A target is a function of the bytes that somebody else wrote. It reads them as the program does, and
asserts what must hold of a good result, such as that it reads the same a second time.
"""

from tests.fuzz import reads_checkpoints as checkpoints
from tests.fuzz import reads_readme as cards
from tests.fuzz import reads_results as results
from tests.fuzz import reads_settings as typed
from tests.fuzz import reads_targets as described
from tests.fuzz.property import Target
from tests.fuzz.reads_records import (
    array,
    conversations,
    labelled,
    lines,
    parquet,
    prompts,
    table,
    texts,
)
from tests.fuzz.reads_records import records as read


def _spelled(*valid: str) -> list[bytes]:
    return [one.encode() for one in valid]


TARGETS: dict[str, Target] = {
    "records-jsonl": Target(read(".jsonl"), lines(texts), "json"),
    "records-json": Target(read(".json"), array(texts), "json"),
    "records-csv": Target(read(".csv"), table(texts), "csv"),
    "records-parquet": Target(
        read(".parquet"), parquet(texts, labelled, conversations, prompts), "parquet"
    ),
    "labelled": Target(read(".jsonl"), lines(labelled), "json"),
    "conversations": Target(read(".jsonl"), lines(conversations), "json"),
    "prompts": Target(read(".jsonl"), lines(prompts), "json"),
    "recipe": Target(typed.recipe, typed.all_recipes, "yaml"),
    "flags": Target(typed.flags, typed.all_flags, "spelled"),
    "variants": Target(typed.variants, lambda: _spelled(*typed.VARIANTS), "spelled"),
    "model-args": Target(
        typed.model_args,
        lambda: _spelled("revision=main,dtype=bfloat16,max_length=64", "tokenizer=a b,subfolder=c"),
        "spelled",
    ),
    "source": Target(
        typed.source,
        lambda: _spelled("members.jsonl", "org/data,name=en,split=train,revision=a1"),
        "spelled",
    ),
    "bound": Target(
        typed.bound, lambda: _spelled("tpr=0.05@fpr=0.01", "auc=0.6", " auc=1"), "spelled"
    ),
    "target-json": Target(described.described, described.descriptions, "json"),
    "card-data": Target(described.card, described.cards, "markdown"),
    "audit-shown": Target(results.shown, results.results, "json"),
    "audit-carded": Target(results.carded, results.results, "json"),
    "audit-page": Target(results.paged, results.results, "json"),
    "audit-compared": Target(results.compared, results.results, "json"),
    "scores": Target(results.scores, results.all_scores, "parquet"),
    "store-shard": Target(results.shard, results.shards, "parquet"),
    "store-manifest": Target(results.manifest, results.manifests, "json"),
    "store-claim": Target(results.claimed, results.claims, "json"),
    "readme": Target(cards.readme, cards.readmes, "markdown"),
    "config": Target(checkpoints.config, checkpoints.configs, "json"),
    "old-settings": Target(checkpoints.old_settings, checkpoints.all_old_settings, "json"),
    "safetensors": Target(checkpoints.header, checkpoints.headers, "safetensors"),
    "shard-index": Target(checkpoints.index, checkpoints.indices, "json"),
    "gguf": Target(checkpoints.gguf, checkpoints.ggufs, "gguf"),
    "search-json": Target(checkpoints.searched("x.json"), checkpoints.documents, "json"),
    "search-text": Target(checkpoints.searched("README.md"), checkpoints.pages, "markdown"),
    "search-parquet": Target(checkpoints.searched("x.parquet"), parquet(texts), "parquet"),
}
