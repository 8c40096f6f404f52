"""The HTTP server: OpenAI's API over one base and its adapters. Start reading at app.py.

It needs the packages of the extra `serve`; nothing outside this folder imports it at import time.
"""
