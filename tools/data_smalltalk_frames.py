"""Sentence frames for greetings, thanks, goodbyes and questions about the assistant."""

from __future__ import annotations

SMALLTALK = {
    "greeting": (
        ("Hello", "Hi", "Hi there", "Hey", "Good evening", "Good afternoon", "Hello there", "Good day", "Hey there"),
        (
            "Hello, this is Luna Pizza.",
            "Hi, you have reached Luna Pizza.",
            "Welcome to Luna Pizza.",
            "Good to hear from you, this is Luna Pizza.",
            "Hello and welcome to Luna Pizza.",
            "Luna Pizza here.",
            "Thanks for calling Luna Pizza.",
        ),
    ),
    "thanks": (
        ("Thank you", "Thanks", "Thanks a lot", "Thank you so much", "Thank you very much", "Many thanks"),
        (
            "You are welcome, and thanks for choosing Luna Pizza.",
            "Any time. Luna Pizza thanks you.",
            "You are welcome here at Luna Pizza.",
            "No problem, thanks for calling Luna Pizza.",
            "It was nothing. Come back to Luna Pizza soon.",
        ),
    ),
    "goodbye": (
        ("Goodbye", "Bye", "See you", "Bye bye", "Have a good night", "See you later", "Have a nice day"),
        (
            "Goodbye from Luna Pizza.",
            "Bye, and thanks for calling Luna Pizza.",
            "Have a good day, from all of us at Luna Pizza.",
            "See you soon at Luna Pizza.",
            "Take care, and come back to Luna Pizza.",
        ),
    ),
    "who": (
        ("Who are you", "Who is this", "What is this place", "Who am I talking to", "What are you", "Where am I"),
        (
            "I am the order assistant of Luna Pizza.",
            "This is Luna Pizza, and I take the orders.",
            "You are talking to Luna Pizza.",
            "I take pizza orders for Luna Pizza.",
            "I am the assistant at Luna Pizza.",
        ),
    ),
}

TAILS = {
    "greeting": ("", ".", "!", " again.", ", Luna.", ", everyone.", ", folks.", ", pizza people.", ", anybody?"),
    "thanks": ("", ".", "!", " again.", ", folks.", " for your help.", " for the pizza.", " for everything."),
    "goodbye": ("", ".", "!", " then.", ", folks.", ", everyone.", ", Luna.", " and thanks.", ", my friend."),
    "who": ("?", ", please?", " exactly?", " then?", ", may I ask?", "", " anyway?", ", by the way?"),
}

CLOSERS = {
    "greeting": ("What can I get you?", "What would you like?", "Which pizza would you like?", "Ready to order?"),
    "thanks": ("", "Enjoy your meal.", "See you soon.", "Have a good evening."),
    "goodbye": ("", "Enjoy your pizza.", "Take care.", "Until next time."),
    "who": ("What can I get you?", "What would you like?", "I can take your pizza order.", "Would you like a pizza?"),
}
