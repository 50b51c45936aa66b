"""The gateway: decrypted record batches over mutual TLS for clients that hold no key (Arrow Flight).

`identity`, `rules`, `tickets`, `wire` and `limits` decide, without I/O; `views` is what an identity sees of a
dataset; `service` answers, `server` speaks gRPC; `client` reads. What crosses: docs/adr/0013.
"""
