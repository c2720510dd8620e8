"""`m3p plan`: memory, step time and MFU, predicted without a GPU."""
