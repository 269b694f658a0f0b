"""Truth against the original: the Xen sample on real Xen 4.17, as first domain and as a guest (`make oracle`)."""
