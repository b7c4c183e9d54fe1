"""Reads tables of Markdown."""


def cells(line: str) -> list[str]:
    """Split a row of a table."""
    return [cell.strip() for cell in line.strip('|').split('|')]
