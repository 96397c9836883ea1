"""Readers of untrusted files: JSON, YAML, npz, npy and pickle. Such files are opened only here.

Each reader raises DataError, naming the file, for anything that is wrong with it. No code in a file is run. Memory is limited before it is
allocated:

| file | limit |
|---|---|
| JSON | 256 MiB of text, 100 levels deep, integers of 4300 digits |
| YAML | 1 MiB of text, 100 000 values with aliases expanded, 100 levels deep |
| npz, npy | 1 GiB of arrays unless the caller sets less; headers are read first; arrays that are not asked for are not read |
| pickle | 16 GiB; objects of 64 MiB plus 16 bytes per byte of the file; 100 levels deep when its values are converted to arrays |
| torch.save | as pickle; a tensor may not be larger than its stored values |
"""
