"""All networks of other libraries whose published weights fit ours."""

from lightning_modules.published.weights import Published

PUBLISHED: tuple[Published, ...] = ()
