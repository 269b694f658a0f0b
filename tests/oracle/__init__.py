"""Truth against the original: the Xen sample on real Xen 4.17, first domain and guest (`make oracle`)."""
