"""The figures of a report and a card: drawn once, shown inside the page and written as files."""
