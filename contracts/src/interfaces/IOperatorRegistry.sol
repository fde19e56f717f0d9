// SPDX-License-Identifier: Apache-2.0
pragma solidity ^0.8.28;

/// @title Who serves models, where, with which key, at what price, and what they have at stake.
/// @notice An operator registers itself, stakes the token and is then found by agents. It moves its own stake only, and after a
/// delay. An operator is *listed* while its stake is at least `minimumStake`, and *active* while it is listed and not paused. The list
/// is therefore as long as stakes make it: registering without a stake costs readers nothing.
///
/// One role is above operators: the `slasher` can take a stake away (`slash`) and keep one that is unbonding from leaving while a
/// dispute goes on (`hold`), for 30 days beyond its delay and no longer, whatever it does. `governance` (the DAO's Timelock, for ever)
/// says who that is. **Nobody is, until there is a contract of disputes**: a new registry has no slasher. There is no other power:
/// nobody can change or pause an operator but itself, and there is no upgrade path.
/// @dev Assumes of the token: balances change by transfers only. One that takes a fee is refused; callbacks are harmless.
/// What an operator states (endpoint, region, class, names, hashes, capacity) is its own claim; a reader treats it as hostile text of
/// bounded length. Prices bind nobody here: a client pays what it signs, and a receipt names the price that it was for.
interface IOperatorRegistry {
    /// @notice A model that an operator serves.
    struct Model {
        /// What a request names, 1 to 64 bytes.
        string name;
        /// Hash of the manifest of its files (weights, tokenizer, chat template).
        bytes32 manifestHash;
        /// For a million tokens of prompt, and of answer, in units of 1e-18 token.
        uint128 priceIn;
        uint128 priceOut;
    }

    /// @notice What an operator says of itself.
    struct Offer {
        /// Signs its receipts. A key belongs to its first operator for ever, also after `update` to another key, so that an old
        /// receipt always points to who signed it. Possession is not proved here: a stranger's key is of no use to the operator.
        address key;
        /// Where its API answers, 1 to 256 bytes.
        string endpoint;
        /// Where its machines are, 0 (not said) to 31 bytes.
        string region;
        /// Which machines: answers of one class are compared with one another. 1 to 31 bytes.
        string deviceClass;
        /// How many requests it serves at once, at least 1.
        uint32 capacity;
        /// What it serves, 1 to 16, each name once.
        Model[] models;
    }

    /// @notice What is known of an operator. Amounts are in units of 1e-18 token.
    struct Operator {
        address account;
        // As in Offer.
        address key;
        string endpoint;
        string region;
        string deviceClass;
        uint32 capacity;
        Model[] models;
        uint256 stake;
        /// No longer counts as stake; can be withdrawn from `withdrawableAt` on (seconds since 1970).
        uint256 unbonding;
        uint64 withdrawableAt;
        /// Until then a dispute keeps what is unbonding; see `releasedAt`.
        uint64 heldUntil;
        bool paused;
    }

    event Registered(address indexed operator, address indexed key, string endpoint);
    event Updated(address indexed operator, address indexed key, string endpoint);
    event PriceSet(address indexed operator, string model, uint128 priceIn, uint128 priceOut);
    event Staked(address indexed operator, uint256 amount, uint256 stake);
    event UnbondingStarted(address indexed operator, uint256 amount, uint256 stake, uint64 withdrawableAt);
    event Withdrawn(address indexed operator, uint256 amount);
    event Paused(address indexed operator);
    event Unpaused(address indexed operator);
    event SlasherSet(address indexed slasher);
    event Held(address indexed operator, uint64 until);
    /// @notice `evidence` names what the slasher judged: a hash of it, or its number there.
    event Slashed(address indexed operator, uint256 amount, uint256 stake, address to, bytes32 indexed evidence);

    error AlreadyRegistered(address operator);
    error NotRegistered(address operator);
    /// @notice The key signs, or has signed, for another operator.
    error KeyTaken(address key, address operator);
    error KeyIsZero();
    error EndpointLength(uint256 length, uint256 longest);
    error ModelCount(uint256 count, uint256 most);
    error ModelNameLength(string name, uint256 longest);
    error ModelHashIsZero(string name);
    error ModelTwice(string name);
    error ModelNotServed(string name);
    error RegionLength(uint256 length, uint256 longest);
    error DeviceClassLength(uint256 length, uint256 longest);
    error CapacityIsZero();
    error AmountIsZero();
    error StakeTooSmall(uint256 stake, uint256 amount);
    error NothingToWithdraw(address operator);
    error StillUnbonding(uint64 withdrawableAt, uint256 now_);
    error AlreadyPaused(address operator);
    error NotPaused(address operator);
    error MinimumStakeIsZero();
    error UnbondingDelayOutOfRange(uint64 delay, uint64 shortest, uint64 longest);
    error GovernanceIsZero();
    error NotGovernance(address caller, address governance);
    error NotSlasher(address caller, address slasher);
    error HoldTooLong(uint64 until, uint256 latest);
    error NothingToSlash(address operator);
    error RecipientNotAllowed(address recipient);
    /// @notice The token took a fee, or moved something else than it was told to.
    error ReceivedOtherAmount(uint256 received, uint256 amount);

    /// @notice Enters the caller as an operator, without a stake.
    function register(Offer calldata offer) external;

    /// @notice Replaces all that the caller says of itself.
    function update(Offer calldata offer) external;

    /// @notice Changes the caller's prices of one model; cheaper than `update`.
    function setPrice(string calldata model, uint128 priceIn, uint128 priceOut) external;

    /// @notice Adds to the caller's stake; the token must have been approved for this contract.
    function stake(uint256 amount) external;

    /// @notice Takes `amount` out of the caller's stake; it can be withdrawn after `unbondingDelay`. A second call adds to what is
    /// unbonding and starts the delay of all of it anew.
    function startUnbonding(uint256 amount) external;

    /// @notice Sends the caller everything that has finished unbonding, from `releasedAt` on.
    function withdraw() external;

    /// @notice The caller stops serving for a while; its stake stays.
    function pause() external;

    function unpause() external;

    /// @notice Says who may slash and hold; 0 for nobody. For governance only.
    function setSlasher(address slasher) external;

    /// @notice What is unbonding of an operator stays until then (or is free now, if `until` is past). For the slasher only.
    /// @param until at most 30 days from now. It may be called again, but never keeps a stake beyond 30 days after its own delay.
    function hold(address operator, uint64 until) external;

    /// @notice Takes up to `amount` from an operator, from its stake first, then from what is unbonding, and sends it to `to`, who
    /// divides it. For the slasher only; takes what there is if that is less, so that no withdrawal before it can stop it.
    /// @return taken what was sent.
    function slash(address operator, uint256 amount, address to, bytes32 evidence) external returns (uint256 taken);

    /// @notice Stake from which an operator is listed, in units of 1e-18 token.
    function minimumStake() external view returns (uint256);

    /// @notice Seconds between `startUnbonding` and `withdraw`.
    function unbondingDelay() external view returns (uint64);

    /// @notice Who says who the slasher is.
    function governance() external view returns (address);

    /// @notice Who may slash and hold; 0 for nobody.
    function slasher() external view returns (address);

    /// @notice When what is unbonding of an operator can be withdrawn: `withdrawableAt`, or later while it is held.
    function releasedAt(address operator) external view returns (uint64);

    /// @notice True while the operator is registered, staked and not paused.
    function isActive(address operator) external view returns (bool);

    /// @notice The operator that a key signs, or has signed, for; zero if none.
    function accountOf(address key) external view returns (address);

    /// @notice What is known of one operator; reverts with NotRegistered.
    function operatorOf(address operator) external view returns (Operator memory);

    /// @notice How many operators are listed.
    function operatorCount() external view returns (uint256);

    /// @notice At most `limit` listed operators from position `offset` on. Positions change when an operator leaves: read all
    /// pages at one block.
    function operators(uint256 offset, uint256 limit) external view returns (Operator[] memory);
}
