"""The runner: claims searches from the board, drives each in a process of its own, and gives slots where they are due.

work     a runner as a program: opens store and board, minds signals
runner   the loop: claim, keep the lease, settle how a search ended
drivers  driver processes as their runner sees them
drive    the driver process: one search, from its first line of orders to how it ended
fence    ending a driver that outlived its right to the search
shares   how many worker slots each running search gets
"""
