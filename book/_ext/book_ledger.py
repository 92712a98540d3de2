"""The ledger: every claim of the tale with its verdict, straight from the package.

``{ledger}`` lists ``qtorch_tutorial.tale.CLAIMS`` in a table, ``{ledger-summary}``
counts the verdicts. The page cannot disagree with the trials, for it is made from the
values that the trials are held to.
"""

from collections import Counter
from collections.abc import Iterable

from book_chapters import find_chapter
from book_tables import Cell, make_table
from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util import logging
from sphinx.util.docutils import SphinxDirective

from qtorch_tutorial import tale

LOG = logging.getLogger(__name__)
UNTRIED = "not yet tried"

# The class of a badge; custom.css gives it a color. The words stay readable without.
BADGES = {
    tale.UPHELD: "upheld",
    tale.OVERTURNED: "overturned",
    tale.DEPENDS: "depends",
    UNTRIED: "untried",
}


def verdict_of(claim: tale.Claim) -> str:
    """Return the verdict in words; "not yet tried" while there is none."""
    return claim.verdict or UNTRIED


def badge(verdict: str) -> nodes.inline:
    """Return the verdict in words, in its color."""
    return nodes.inline("", verdict, classes=["verdict", f"verdict-{BADGES[verdict]}"])


def summary(claims: Iterable[tale.Claim]) -> list[tuple[str, int]]:
    """Count the claims of each verdict, in the order of ``BADGES``."""
    count = Counter(verdict_of(claim) for claim in claims)
    return [(verdict, count[verdict]) for verdict in BADGES]


class Ledger(SphinxDirective):
    """``{ledger}``: the table of all claims."""

    def run(self) -> list[nodes.Node]:
        """Build the table; a tried claim links to its trial."""
        self.env.note_reread()
        rows = [self._row(claim) for claim in tale.CLAIMS.values()]
        header = ("Claim", "The tale says", "Verdict", "Evidence")
        table = make_table(header, rows, widths=(8, 38, 14, 40))
        table["classes"] += ["ledger"]
        return [table]

    def _row(self, claim: tale.Claim) -> tuple[Cell, ...]:
        verdict = badge(verdict_of(claim))
        if not claim.verdict:
            soon = nodes.emphasis("", f"Chapter {claim.chapter} will try it.")
            return nodes.strong("", claim.id), claim.says, verdict, soon
        return self._trial(claim), claim.says, verdict, claim.evidence

    def _trial(self, claim: tale.Claim) -> nodes.Node:
        """Return a link to the cell that tries the claim."""
        chapter = find_chapter(self.env.found_docs, claim.chapter)
        if chapter is None:
            LOG.warning(
                "claim %s has a verdict, but chapter %d is not in the book",
                *(claim.id, claim.chapter),
                location=self.get_location(),
            )
            return nodes.strong("", claim.id)
        uri = self.env.app.builder.get_relative_uri(self.env.docname, chapter)
        return nodes.reference(
            "",
            claim.id,
            refuri=f"{uri}#claim-{claim.id}",
            internal=True,
            reftitle=f"The trial of {claim.id}, in chapter {claim.chapter}",
        )


class LedgerSummary(SphinxDirective):
    """``{ledger-summary}``: how many claims got which verdict."""

    def run(self) -> list[nodes.Node]:
        """Build one paragraph of badges with counts."""
        self.env.note_reread()
        line = nodes.paragraph(classes=["ledger-summary"])
        for verdict, count in summary(tale.CLAIMS.values()):
            words = (nodes.Text(f"{count} "), badge(verdict))
            line += [nodes.inline("", "", *words, classes=["count"]), nodes.Text(" ")]
        return [line]


def setup(app: Sphinx) -> dict[str, bool]:
    """Register both directives."""
    app.add_directive("ledger", Ledger)
    app.add_directive("ledger-summary", LedgerSummary)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
