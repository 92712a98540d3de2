"""A docutils table from rows of nodes; what the generated pages share."""

from collections.abc import Iterable, Sequence

from docutils import nodes

Cell = str | nodes.Node | Sequence[nodes.Node]


def make_table(
    header: Sequence[str], rows: Iterable[Sequence[Cell]], *, widths: Sequence[int]
) -> nodes.table:
    """Build a table.

    Parameters
    ----------
    header : sequence of str
        One heading for each column.
    rows : iterable of sequences
        Each cell is a text, an inline node, or several.
    widths : sequence of int
        The columns' shares of the width.

    Raises
    ------
    ValueError
        If a row has another number of cells than the header.
    """
    group = nodes.tgroup(cols=len(header))
    group += [nodes.colspec(colwidth=width) for width in widths]
    group += nodes.thead("", _row(header))
    body = nodes.tbody()
    for row in rows:
        if len(row) != len(header):
            raise ValueError(f"{len(row)} cells under {len(header)} headings: {row}")
        body += _row(row)
    group += body
    return nodes.table("", group)


def _row(cells: Sequence[Cell]) -> nodes.row:
    """One row, every cell a paragraph."""
    row = nodes.row()
    for cell in cells:
        inline = [nodes.Text(cell)] if isinstance(cell, str) else cell
        row += nodes.entry("", nodes.paragraph("", "", *_listed(inline)))
    return row


def _listed(cell: nodes.Node | Sequence[nodes.Node]) -> Sequence[nodes.Node]:
    """Return a single node as a list of one."""
    return [cell] if isinstance(cell, nodes.Node) else cell
