"""The stream reaches people: sessions on one device, a transport, an API and a page. Its libraries are extra `serve`.

It knows chunks and sources of chunks, never latents. `docs/serve.md` describes it from outside.
"""

from omniforcing_jax.io.extras import need

need("starlette", "uvicorn", "websockets", "prometheus_client", extra="serve")
