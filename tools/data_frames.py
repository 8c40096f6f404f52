"""Sentence frames for orders: how customers ask, and how the plain shop assistant answers."""

from __future__ import annotations

from data_rows import pool

# --- requests -----------------------------------------------------------------------------------

GREETINGS = (*("",) * 14, "Hi,", "Hello,", "Hey,", "Good evening,", "Hi there,", "Good afternoon,", "Excuse me,")

ASKS = (
    "{items}, please.",
    "{items}.",
    "{items}, thanks.",
    "I would like {items}, please.",
    "I'd like {items}.",
    "I'd like to order {items}.",
    "Can I get {items}?",
    "Can I have {items}, please?",
    "Could I get {items}, please?",
    "Could you make me {items}?",
    "Could we order {items}?",
    "May I have {items}?",
    "We'll have {items}.",
    "We will take {items}, please.",
    "I'll take {items}.",
    "I'll go for {items}, thanks.",
    "I want {items}.",
    "We need {items}.",
    "Please make me {items}.",
    "Please put me down for {items}.",
    "Get me {items}, please.",
    "Give me {items}.",
    "Let me have {items}, please.",
    "I want to place an order for {items}.",
    "Please send the kitchen an order for {items}.",
    "I think I'll have {items} today.",
    "My order is {items}.",
    "For me it is {items}.",
    "Is it possible to get {items}?",
    "Would you prepare {items} for us?",
)

STORIES = (
    "Friends are coming over, so we need {items}.",
    "It is movie night at our place and we want {items}.",
    "The kids are hungry, so could I get {items}?",
    "I have had a long day and I deserve {items}.",
    "We are celebrating at the office and would like {items}.",
    "My sister recommended you, so I will try {items}.",
    "Nobody wants to cook here, so please make us {items}.",
    "The game starts soon, can we have {items}?",
    "I have been looking forward to this all week: {items}, please.",
    "My boss is paying, so I'll have {items}.",
    "We just moved in and have no kitchen yet, so {items}, please.",
    "I never know what to choose, but today it is {items}.",
)

THANKS = (*("",) * 14, "Thank you.", "Thanks a lot.", "That is all.", "That's everything.", "Thanks!")

# --- replies ------------------------------------------------------------------------------------
# Up to its first slot a reply tells orders, changes, cancellations, deliveries and pickups apart: a small
# model that answers greedily is lost when it begins with words that fit several of them.

CONFIRMS = (
    "I have {items} for you.",
    "I have put down {items}.",
    "I have added {items} to your order.",
    "I have noted {items}.",
    "That makes {items}.",
    "We will make {items} for you.",
    "You are getting {items}.",
    "I wrote down {items}.",
    "Okay, {items}.",
    "Got it, {items}.",
)

CLOSERS = (
    *("",) * 24,
    "Anything else?",
    "Does that look right?",
    "Will that be all?",
    "Enjoy your meal.",
    "It will be ready soon.",
    "Thank you for choosing Luna Pizza.",
)

# --- pickup and delivery ------------------------------------------------------------------------

DELIVERY_ASKS = (
    "Please deliver {items} to {address}.",
    "Can you bring {items} to {address}?",
    "I need {items} delivered to {address}.",
    "Deliver {items} to {address}, please.",
    "{items} for delivery to {address}, please.",
    "I'd like {items} sent to {address}.",
    "Could you send {items} to {address}?",
    "We are at {address} and would like {items}.",
    "I live at {address}. Can I get {items} delivered?",
    "Delivery to {address}: {items}.",
    "Please bring us {items}. The address is {address}.",
    "Can I have {items} brought to {address}, please?",
)

DELIVERY_REPLIES = (
    "We will deliver {items} to {address}.",
    "Our driver will bring {items} to {address}.",
    "We deliver {items} to {address}.",
    "We are bringing {items} to {address}.",
    "Our courier will take {items} to {address}.",
    "Expect {items} at {address}.",
)

PICKUP_ASKS = (
    "I'd like to pick up {items} at {time}.",
    "Can I pick up {items} at {time}?",
    "{items} for pickup at {time}, please.",
    "I will come by at {time} for {items}.",
    "Please have {items} ready at {time}, I will pick it up.",
    "Pickup at {time}: {items}.",
    "I want {items}, and I can collect it at {time}.",
    "Could you prepare {items} for {time}? I'll pick it up.",
    "We will collect {items} at {time}.",
    "Can you have {items} waiting for me at {time}?",
)

PICKUP_REPLIES = (
    "You can pick up {items} at {time}.",
    "You can collect {items} at {time}.",
    "Come by at {time} for {items}.",
    "Pickup is set for {time}, and we will make {items}.",
    "At {time} you can collect {items}.",
    "Your pickup is at {time}, and the order is {items}.",
)

WAY_CLOSERS = (
    *("",) * 16,
    "See you soon.",
    "Is that correct?",
    "Thanks for ordering.",
    "Does that work for you?",
)

STREETS = pool(
    "Oak Street|Maple Avenue|Pine Road|Cedar Lane|Elm Street|Lake Drive|Hill Road|River Street|Park Avenue|"
    "Church Street|Main Street|Market Street|Mill Lane|School Road|Garden Lane|Bridge Road|Spring Street|Forest Drive|"
    "Sunset Avenue|King Street"
)
TIMES = tuple(f"{hour}{minutes} pm" for hour in (12, 1, 5, 6, 7, 8, 9) for minutes in ("", ":15", ":30", ":45"))
