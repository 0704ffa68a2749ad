"""The lab in the browser: pages ask the engine, fetch what runs wrote, and draw it. Nothing here trains."""
