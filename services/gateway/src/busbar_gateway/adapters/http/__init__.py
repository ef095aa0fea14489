"""The gateway's HTTP edge: OpenAI under /v1 and KServe v2 under /v2."""
