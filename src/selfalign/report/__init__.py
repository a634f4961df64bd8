"""Documents of what was measured: cells read from result files, figures, films, and pages of HTML and PDF."""
