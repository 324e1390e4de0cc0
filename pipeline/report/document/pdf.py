"""The report as a PDF, made by WeasyPrint from the page for print."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from PIL import ImageFile

from pipeline.common.errors import UserError
from pipeline.report.document.content import Report
from pipeline.report.document.figures import PRINTED_IMAGES, print_figures
from pipeline.report.document.html import PageOptions, render_page, write_file
from pipeline.track.record import Record


def weasyprint_module() -> Any:
    """Return WeasyPrint. Raises UserError that says what to install if it, or its library Pango, is missing."""
    read_truncated = ImageFile.LOAD_TRUNCATED_IMAGES
    try:
        import weasyprint
    except ImportError:
        raise UserError("--pdf needs WeasyPrint; install it, in the checkout: pip install -e '.[pdf]'") from None
    except OSError as error:
        raise UserError(
            f"--pdf needs Pango, which WeasyPrint cannot load ({str(error).splitlines()[0]});"
            " install it, on Debian: apt-get install libpango-1.0-0 libpangoft2-1.0-0"
        ) from None
    finally:
        ImageFile.LOAD_TRUNCATED_IMAGES = read_truncated  # WeasyPrint lets Pillow read cut images without an error
    return weasyprint


def write_pdf(report: Report, path: Path, *, title: str, address: Callable[[Record], str]) -> Path:
    """Write the report as a PDF. Raises UserError if WeasyPrint is missing or the file cannot be written."""
    weasyprint = weasyprint_module()
    options = PageOptions(show=print_figures, address=address, scripts=(), has_details=False)
    report = report.with_images(PRINTED_IMAGES)
    html = render_page(report, report.papers, options, title=title)
    fetch = weasyprint.URLFetcher(allowed_protocols=("data",))  # a page never makes us read files or ask servers
    document = weasyprint.HTML(string=html, url_fetcher=fetch)
    return write_file(path, document.write_pdf(uncompressed_pdf=False))
