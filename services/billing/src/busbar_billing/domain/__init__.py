"""Pure decisions about money: what a request costs and which postings say so."""
