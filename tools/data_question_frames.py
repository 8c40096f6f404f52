"""Sentence frames for questions about prices, the menu and the shop."""

from __future__ import annotations

POLITE = (
    "",
    "",
    "",
    "",
    "Hi,",
    "Hello,",
    "Excuse me,",
    "Quick question:",
    "One question,",
    "Before I order,",
    "Sorry to bother you,",
    "Just wondering,",
    "Good evening,",
)

PRICE_ASKS = (
    "How much is {x}?",
    "What does {x} cost?",
    "What is the price of {x}?",
    "What do you charge for {x}?",
    "How much do you charge for {x}?",
    "How much does {x} cost?",
    "How much would {x} be?",
    "What would I pay for {x}?",
    "Can you tell me the price of {x}?",
    "I'd like to know the price of {x}.",
    "Could you tell me what {x} costs?",
    "How much for {x}?",
    "What will {x} cost me?",
    "Do you know how much {x} is?",
    "Please tell me the cost of {x}.",
    "How many dollars is {x}?",
)

PRICE_REPLIES = (
    "{x} is {price}.",
    "{x} costs {price}.",
    "The price of {x} is {price}.",
    "{x} is priced at {price}.",
    "{x} goes for {price}.",
    "You get {x} for {price}.",
)

PRICE_CLOSERS = (
    *("",) * 16,
    "Would you like to order?",
    "Anything else you would like to know?",
    "Can I get you anything?",
    "Tax is included.",
)

PAIR_ASKS = (
    "How much are {a} and {b}?",
    "What do {a} and {b} cost?",
    "What are the prices of {a} and {b}?",
    "How much is {a}, and how much is {b}?",
    "What does {a} cost, and what about {b}?",
    "Can you tell me the price of {a} and the price of {b}?",
    "What do you charge for {a} and for {b}?",
    "I'd like to know the prices of {a} and {b}.",
    "Please tell me what {a} costs, and {b} too.",
    "How much for {a}, and for {b}?",
)

PAIR_REPLIES = (
    "{a} is {p} and {b} is {r}.",
    "{a} costs {p} and {b} costs {r}.",
    "{a} is {p}, and {b} is {r}.",
    "{a} goes for {p}, {b} for {r}.",
    "The price of {a} is {p}, and {b} is {r}.",
    "{a} is priced at {p} and {b} at {r}.",
)

SIZES_ASKS = (
    "How much is the {x} pizza?",
    "What does the {x} pizza cost?",
    "What is the price of your {x} pizza?",
    "What do you charge for the {x} pizza?",
    "How much are your {x} pizzas?",
    "What are the prices for the {x} pizza?",
    "How much does the {x} cost in each size?",
    "Can you tell me what the {x} pizza costs?",
    "I'd like to know the prices of the {x} pizza.",
    "What does the {x} cost in small, medium and large?",
    "Please tell me the {x} pizza prices.",
    "How much would the {x} pizza be?",
)

SIZES_REPLIES = (
    "For the {x} pizza, {listed}.",
    "The {x} pizza comes in three sizes: {listed}.",
    "For our {x} pizza, {listed}.",
    "Our {x} pizza is priced by size: {listed}.",
    "Here is the {x} pizza by size: {listed}.",
    "It depends on the size. For the {x} pizza, {listed}.",
)

GROUP_ASKS = (
    "What {x} do you have?",
    "Which {x} do you have?",
    "Which {x} can I get?",
    "What {x} are there?",
    "What {x} do you offer?",
    "Can you list your {x}?",
    "What are your {x}?",
    "Could you tell me which {x} you have?",
    "Tell me about your {x}, please.",
    "What kinds of {x} do you have?",
    "Which {x} are on the menu?",
    "I'd like to know what {x} you have.",
    "What are my choices for {x}?",
    "What can I choose from for {x}?",
    "Please tell me the {x} you offer.",
    "Do you have a list of {x}?",
)

GROUP_REPLIES = (
    "We have {listed}.",
    "Our {x} are {listed}.",
    "The {x} are {listed}.",
    "We offer {listed}.",
    "You can choose {listed}.",
    "The menu has {listed}.",
)

MENU_CLOSERS = (
    *("",) * 16,
    "What would you like?",
    "What can I get you?",
    "Would you like to order?",
    "Which would you like?",
)

INFO_CLOSERS = (
    *("",) * 16,
    "What would you like?",
    "Would you like to order?",
    "May I take your order?",
    "Does that help?",
)

ON_ASKS = (
    "What is on the {x} pizza?",
    "What's on the {x}?",
    "What comes on the {x} pizza?",
    "Which toppings are on the {x} pizza?",
    "What do you put on the {x} pizza?",
    "Can you tell me what is on the {x} pizza?",
    "What is in your {x} pizza?",
    "What goes on the {x}?",
    "Tell me what is on the {x}, please.",
    "What are the ingredients of the {x} pizza?",
    "I'd like to know what is on the {x} pizza.",
    "Could you describe the {x} pizza?",
)

ON_REPLIES = (
    "The {x} pizza has {listed}.",
    "The {x} comes with {listed}.",
    "Our {x} pizza has {listed} on it.",
    "We make the {x} pizza with {listed}.",
    "The {x} is topped with {listed}.",
    "On the {x} pizza we put {listed}.",
)

HAVE_ASKS = (
    "Do you have {x}?",
    "Do you sell {x}?",
    "Can I get {x}?",
    "Have you got {x}?",
    "Do you offer {x}?",
    "Can I find {x} on your menu?",
    "Is it possible to get {x} at your place?",
    "I'd like to know if you have {x}.",
    "Does your shop have {x}?",
    "Could I order {x} from you?",
    "Do you also have {x}?",
    "Can you tell me if you have {x}?",
)

HAVE_REPLIES = (
    "Yes, we have {x}.",
    "Yes, we do have {x}.",
    "Yes, you can get {x} here.",
    "Yes, we sell {x}.",
    "Yes, we always have {x}.",
    "Yes, our menu has {x}.",
)

HOURS_ASKS = (
    "When are you open?",
    "What are your opening hours?",
    "What time do you open?",
    "What time do you close?",
    "How late are you open?",
    "When do you close tonight?",
    "Are you open today?",
    "Until when can I order?",
    "What hours are you open?",
    "Can you tell me your hours?",
    "When does the shop open?",
    "When does the kitchen close?",
    "How long are you open today?",
)

HOURS_REPLIES = (
    "We are open from {open} to {close}.",
    "Our hours are {open} to {close}.",
    "We open at {open} and close at {close}.",
    "You can order from {open} until {close}.",
    "The shop opens at {open} and closes at {close}.",
)
