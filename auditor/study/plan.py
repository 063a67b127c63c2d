"""`--dry-run` of a study: what would be trained and audited, and what is there already."""

from rich.table import Table

from auditor.report.catalogue import new_table
from auditor.study.recipe import Study, target_folder, train_config
from auditor.study.run import is_finished, steps_of


def plan_table(study: Study) -> Table:
    """Every target with its training, its audits and their state."""
    table = new_table("target", "step", "what", "state")
    table.title = study.study
    for name in study.targets:
        made = train_config(study, name)
        what = f"{made.method} fine-tune of {made.model} on {made.data}, {made.epochs} epochs"
        what += f", {made.shadows} shadow" if made.shadows else ""
        is_made = (target_folder(study, name) / "target.json").is_file()
        table.add_row(name, "train", what, "done" if is_made else "")
        for step in steps_of(study, name):
            n = len(step.config.variant_specs)
            base = "with the base" if step.config.reference else "without a reference"
            state = "done" if is_finished(study, step) else ""
            table.add_row("", step.name, f"{n} versions, {base}", state)
    return table
