"""What a build hands to a run: job files in; receipts, heartbeats and exit codes out.

This package is the one thing that the compile side (`compiler`, `emit`, `launch`) and the run side (`data`,
`train`, `deploy`) share. It imports neither.
"""
