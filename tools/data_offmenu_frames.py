"""Things the shop does not sell, topics it does not deal with, and the sentences around them."""

from __future__ import annotations

from data_rows import pool

UNSOLD_FOOD = pool(
    "sushi|burgers|tacos|noodles|soup|sandwiches|ice cream|steaks|coffee|beer|wine|pancakes|curry|hot dogs|donuts|"
    "milkshakes"
)

UNSOLD_TOPPINGS = pool("avocado|eggs|corn|tofu|turkey|broccoli|potatoes|salmon")

LACK_ASKS = (
    "Can I get some {x}?",
    "I'd like {x}, please.",
    "Do you have {x}?",
    "Do you sell {x}?",
    "I want to order {x}.",
    "Could we get {x} too?",
    "I would like to order some {x}.",
    "Can you make {x}?",
    "Please add {x} to my order.",
    "Have you got {x}?",
    "How much for some {x}?",
    "We are in the mood for {x}, can you help?",
    "Is it possible to get {x} at your place?",
    "Do you also offer {x}?",
    "Give me some {x}, please.",
    "My kids want {x}.",
)

LACK_TOPPING_ASKS = (
    "I'd like {pizza} with {x}.",
    "Can I get {pizza} with {x} on it?",
    "Please put {x} on my pizza.",
    "Can I have {x} as a topping?",
    "Do you have {x} as a topping?",
    "Could you add {x} to {pizza}?",
    "I want {x} on my pizza.",
    "{pizza} with extra {x}, please.",
)

LACK_OPENERS = ("I am sorry,", "Sorry,", "Unfortunately,", "I am afraid", "Sadly,")

LACKS = (
    "we do not have {x}.",
    "we do not sell {x}.",
    "there is no {x} on our menu.",
    "we do not offer {x}.",
    "our menu has no {x}.",
    "we do not serve {x}.",
)

LACK_CLOSERS = (
    *("",) * 16,
    "Would you like a pizza?",
    "Would you like something else?",
    "What else can I get you?",
    "How about a drink or a side?",
)

TOPIC_SLOTS = {
    "city": ("Paris", "London", "Chicago", "Seattle", "Boston", "Denver", "Miami", "Dallas", "San Diego", "New York"),
    "day": ("today", "tomorrow", "this weekend", "next Monday", "on Friday", "next week", "on Sunday"),
    "thing": ("the sea", "my cat", "autumn", "love", "the moon", "my mother", "a dragon", "the rain"),
    "n": ("7", "12", "15", "23", "48", "96", "31", "64"),
    "m": ("3", "5", "8", "9", "14", "21"),
    "music": ("jazz", "rock", "pop", "country", "classical", "hip hop"),
    "lang": ("French", "Spanish", "German", "Italian", "Japanese"),
    "sport": ("football", "baseball", "tennis", "hockey", "basketball"),
    "time": ("6 am", "7 am", "8 pm", "9:30 am", "5 pm"),
}

# The topic as the reply names it -> requests about it.
TOPICS = {
    "the weather": (
        "What is the weather like in {city} {day}?",
        "Will it rain in {city} {day}?",
        "How hot will it be in {city} {day}?",
        "Do I need an umbrella in {city} {day}?",
    ),
    "flights": (
        "Book me a flight to {city} {day}.",
        "I need a plane ticket to {city} {day}.",
        "Find me a cheap flight to {city} {day}.",
    ),
    "hotels": ("Book a hotel room in {city} {day}.", "I need a hotel in {city} {day}.", "Find me a hotel in {city}."),
    "trains": ("When does the train to {city} leave {day}?", "I need a train ticket to {city} {day}."),
    "buses": ("Get me a bus to {city} {day}.", "When is the next bus to {city}?"),
    "cars": ("I want to rent a car in {city} {day}.", "Can you get me a rental car in {city}?"),
    "taxis": ("Call me a taxi to the airport in {city}.", "I need a cab in {city} {day}."),
    "poems": ("Write me a poem about {thing}.", "Can you write a short poem about {thing}?"),
    "stories": ("Tell me a story about {thing}.", "Please make up a story about {thing}."),
    "maths": ("What is {n} times {m}?", "How much is {n} plus {m}?", "Can you divide {n} by {m} for me?"),
    "jokes": ("Tell me a joke about {thing}.", "Do you know a joke about {thing}?"),
    "politics": ("Who should win the election in {city}?", "What do you think about the mayor of {city}?"),
    "music": ("Play some {music} music.", "Find me a good {music} song.", "Put on some {music} {day}."),
    "movies": ("Which movies are playing in {city} {day}?", "Get me two movie tickets in {city} {day}."),
    "concerts": ("Are there any {music} concerts in {city}?", "Buy me a ticket for a {music} concert {day}."),
    "doctors": ("I need to see a doctor in {city} {day}.", "Find me a dentist in {city}."),
    "haircuts": ("Book me a haircut {day} at {time}.", "I need a hair salon in {city}."),
    "banking": ("Transfer {n} dollars to my savings account.", "How much money is in my bank account {day}?"),
    "sports": ("Who won the {sport} game in {city}?", "When is the next {sport} match in {city}?"),
    "alarms": ("Set an alarm for {time} {day}.", "Wake me up at {time} {day}."),
    "translations": ("How do you say {thing} in {lang}?", "Translate {thing} into {lang}, please."),
    "homework": ("Help me with my {lang} homework.", "Can you do my {lang} homework {day}?"),
    "apartments": ("Find me an apartment in {city}.", "I am looking for a flat with two rooms in {city}."),
}

DECLINE_OPENERS = (*("",) * 6, "That is a nice thought, but", "I wish I could help, but")

DECLINES = (
    "I only take pizza orders, so I cannot help with {x}.",
    "I only know pizza, and nothing of {x}.",
    "this is a pizza shop, and we do not deal with {x}.",
    "I cannot help with {x}, only with pizza.",
    "we are just a pizza place and do not handle {x}.",
    "I am only here for pizza orders, not for {x}.",
    "I know all about pizza, but nothing about {x}.",
)

DECLINE_CLOSERS = (
    *("",) * 16,
    "Would you like a pizza?",
    "What would you like to eat?",
    "Are you hungry?",
    "May I take your order?",
)
