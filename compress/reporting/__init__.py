"""Reports: original against compressed, as HTML, Markdown, CSV and JSON."""
