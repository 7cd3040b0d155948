"""Generation: which tokens may come next, and fairseq's sequence generator on OFA's fast decoder."""
