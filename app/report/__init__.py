"""The study as one document: sections of panels, tables and text, written as HTML and as Markdown."""
