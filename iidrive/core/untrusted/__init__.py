"""Readers of files that anybody may have written: JSON, YAML, npz and npy, pickle. The only place where such files are opened.

Each reader raises DataError, in one sentence that names the file, for whatever is wrong with it; nothing in a file is ever run; and what a
file may cost is bounded before it is spent:

| file | limit |
|---|---|
| JSON | 256 MiB of text, 100 levels deep, integers of 4300 digits |
| YAML | 1 MiB of text, 100 000 values with its aliases written out, 100 levels deep |
| npz, npy | 1 GiB of arrays where a reader does not say less, headers are read first, arrays that nobody asked for are not opened |
| pickle | 16 GiB, 16 bytes of objects for each byte of the file plus 64 MiB, 100 levels deep where its values are used |
| torch.save | as pickle; a tensor may not be larger than what is stored of it |
"""
