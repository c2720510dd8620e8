"""A web page in one file: nothing is fetched and no script runs, whatever stands in a caption."""

import html


def document(title: str, style: str, body: str) -> str:
    """Return the page; `title` is escaped here, `body` by whoever made it. Pictures come as data URIs."""
    policy = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<title>{html.escape(title)}</title>
<style>{style}</style>
</head>
<body>
<h1>{html.escape(title)}</h1>
{body}
</body>
</html>
"""
