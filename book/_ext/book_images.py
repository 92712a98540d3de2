"""No page asks another host for an image.

A notebook's Colab badge is an image on Google's host, so that GitHub and Colab show it.
In the book it is replaced by one of our own. Any other remote image is a warning, which
fails the strict build.
"""

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.transforms import SphinxTransform
from sphinx.util import logging

LOG = logging.getLogger(__name__)

BADGE = "/book/_static/badge_colab.svg"  # from the root of the book


def local_uri(uri: str) -> str | None:
    """Return what to show for ``uri``: itself if local, None if it must not be shown.

    Examples
    --------
    >>> local_uri("figure.png"), local_uri("https://example.org/figure.png")
    ('figure.png', None)
    >>> local_uri("https://colab.research.google.com/assets/colab-badge.svg")
    '/book/_static/badge_colab.svg'
    """
    if "://" not in uri and not uri.startswith("//"):
        return uri
    return BADGE if uri.endswith("/colab-badge.svg") else None


class KeepImagesLocal(SphinxTransform):
    """Replace the badge, warn of other remote images."""

    default_priority = 300

    def apply(self, **kwargs) -> None:
        """Look at every image of a page."""
        for image in self.document.findall(nodes.image):
            uri = local_uri(image["uri"])
            if uri is None:
                LOG.warning("remote image %s", image["uri"], location=image)
            elif uri != image["uri"]:
                image["uri"] = uri
                image["classes"] += ["colab-badge"]


def setup(app: Sphinx) -> dict[str, bool]:
    """Register the transform."""
    app.add_transform(KeepImagesLocal)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
