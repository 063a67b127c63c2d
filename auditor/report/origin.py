"""Where the records of an audit came from, in one sentence, where nobody gave them by hand."""

from auditor.results import AuditResult


def origin(result: AuditResult) -> str:
    """One sentence; empty where the records were given."""
    records = result.records
    if records.source == "target.json":
        return "Both lists are named by target.json, which training left beside the model."
    if records.source == "card":
        return (
            f"Both lists are splits of {records.data_set}, the data set that the model's card "
            "names: that members were trained on, and nonmembers not, is the card's word."
        )
    return ""
