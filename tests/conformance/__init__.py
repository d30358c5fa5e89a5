"""Runs torch's own RPC tests, unmodified, against torch's TensorPipe agent or against tensorcall.rpc.

In the order of a test's way: `__main__` or `test_share` choose tests; `pool` hands them to zygotes and gathers results;
`zygote` is a process with torch preloaded that forks the ranks; `supervise` watches over them; `rank` is what one does;
`verdicts` makes one result of what the ranks tell. `suites` says which tests there are, `categories` what each needs,
`expectations` which may differ from torch's own result; `table` writes docs/conformance.md.
"""
