"""`m3p plan`: memory, step time and MFU, foretold without a GPU."""
