"""An OpenAI-compatible server for one model, and its web page. The only room that knows FastAPI; no torch."""
