"""Search: pictures embedded once into an index on disk, queries answered from it, and the page that serves it."""
